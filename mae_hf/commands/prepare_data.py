"""Decode the images of every source before the runs need them, search for leaks, and measure the channels."""

from mae_hf import figures
from mae_hf.config.commands import PrepareConfig
from mae_hf.data.cache import cache_folder, open_stores
from mae_hf.data.dataset import load_pretraining_images
from mae_hf.data.sources import load_splits
from mae_hf.data.survey import channel_flags
from mae_hf.leakage.matches import audit_stores, check_splits, describe_match, pairs_figure, write_pairs


def prepare_data(config: PrepareConfig) -> None:
    """Decode and list every split of every source, and print which unlabelled images duplicate a split's images."""
    # ---- decode ----
    sources = dict.fromkeys(config.data.sources)
    splits = [split for source in sources for split in load_splits(config.data, source).values()]
    if config.audit_against:
        check_splits(splits, config.audit_against)
    stores = open_stores(splits, config.image_size, config.data)
    for source in sources:
        print(source)
        for store in (store for store in stores if store.split.source == source):
            split = store.split
            classes = f"{len(split.class_names)} classes" if split.class_names else "no labels"
            skipped = f", {len(store.bad)} skipped" if store.bad else ""
            size = store.path.stat().st_size / 2**20
            before = ", decoded before" if store.was_there else ""
            what = f"{len(store.rows):>8} images{skipped}, {classes}"
            print(f"  {split.role:<10} {what}, {size:.1f} MiB in {store.path}{before}")
    # a source that has changed gets another store, and the old one stays
    folder = cache_folder(config.data)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"{folder} holds {sum(sizes) / 2**20:.1f} MiB in {len(sizes)} files; delete those that you no longer need")

    # ---- leaks ----
    if config.audit_against:
        for match in audit_stores(stores, config.audit_against):
            print("\n".join(describe_match(match)))
            print(f"  all pairs of rows (unlabeled, {config.audit_against}) are in {write_pairs(match)}")
            if len(match.found):
                title = f"unlabeled and {config.audit_against}"
                figure = pairs_figure(match.images.images, match.against.images, match.found, title)
                print(f"  the pairs are drawn in {figures.save(figure, match.file('png'))}")

    # ---- the channels of the pre-training images ----
    images, held_out = load_pretraining_images(config.data, config.image_size)
    print(f"pre-training: {len(images)} images, {len(held_out)} held out; channels of the training images:")
    print(f"  {channel_flags(images)}")
