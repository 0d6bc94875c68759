"""Which images of pre-training are copies of test images, and what is done about them."""
