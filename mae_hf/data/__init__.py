"""From a source of images to batches of pixel values: sources, store, images, sampler, draws, augmentation."""
