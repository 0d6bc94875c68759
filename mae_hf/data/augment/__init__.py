"""How batches of images are cropped, flipped, distorted, erased and mixed."""
