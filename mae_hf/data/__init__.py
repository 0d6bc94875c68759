"""From a source of images to batches: sources, splits, cache, dataset, sampler, random, augment; or a stream."""
