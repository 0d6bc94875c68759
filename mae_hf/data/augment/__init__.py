"""Augmentations of whole batches, on the CPU or the GPU.

They are our own because torchvision and kornia draw from a global generator. Here every random number is a function of
(seed, epoch, row), see `mae_hf.data.random`: an image gets the same crop on one process or eight, and after a resume.
"""
