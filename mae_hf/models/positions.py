"""The fixed position table of the paper, and the check that a model uses its table.

Shapes: B images, N patches of an image, D width, P patch side, C channels, S image side.
"""

import torch
from torch import Tensor
from transformers import ViTMAEForPreTraining


class PositionError(RuntimeError):
    """The model does not know the positions of patches, and training cannot repair that."""


def sincos_positions(dim: int, grid_size: int) -> Tensor:
    """Return the fixed 2-d sine-cosine position table; its first row (CLS) is zero.

    As in the published weights, the first half of a row encodes the column of the patch, and the second half its row.
    Each half holds sines, then cosines, of `dim / 4` frequencies.

    Args:
        dim: width of the table, a multiple of 4.
        grid_size: patches along a side of the image.

    Returns:
        (1 + grid_size², dim) float32.

    Source: arXiv 2111.06377, appendix A; `get_2d_sincos_pos_embed` of facebookresearch/mae.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns, rows = axis.repeat(grid_size, 1), axis.repeat_interleave(grid_size, dim=0)
    patches = torch.cat((columns, rows), dim=1)
    return torch.cat((torch.zeros_like(patches[:1]), patches)).float()


@torch.no_grad()
def check_positions(model: ViTMAEForPreTraining) -> None:
    """Refuse a model that does not know where a patch is. Every run does this before step 0.

    On a random image, the predictions for different masked patches must differ (decoder's table), and the CLS feature
    must change when the visible patches move (encoder's table). A new ViTMAE of transformers 5 fails both checks. The
    modes of the model and the random state do not change. Call this before `accelerator.prepare`, because parts of a
    sharded model cannot run alone.

    Raises:
        PositionError: a check fails, or the predictions are not finite.
    """
    num_patches = model.vit.embeddings.patch_embeddings.num_patches
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(1, num_patches, model.decoder.decoder_pred.out_features, generator=generator)
    noise = torch.rand(1, num_patches, generator=generator)

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        here = model.vit(model.unpatchify(patches).to(model.device, model.dtype), noise=noise.to(model.device))
        # The same patches stay visible, each moved by one position.
        patches, noise = patches.roll(1, dims=1), noise.roll(1, dims=1)
        there = model.vit(model.unpatchify(patches).to(model.device, model.dtype), noise=noise.to(model.device))
        # One visible patch is enough for the decoder, and leaves several masked ones at any mask ratio.
        logits = model.decoder(here.last_hidden_state[:, :2], here.ids_restore).logits
    finally:
        for module, mode in modes.items():
            module.training = mode

    hidden = logits[here.ids_restore > 0]
    cls_here, cls_there = here.last_hidden_state[:, 0], there.last_hidden_state[:, 0]
    for values, reference, problem, table in (
        (hidden, hidden[:1], "its predictions for all masked patches of an image are equal", "decoder_pos_embed"),
        (cls_there, cls_here, "its CLS feature stays the same when the visible patches move", "position_embeddings"),
    ):
        change = (values.float() - reference.float()).abs().max()
        # Without a table the outputs differ only by rounding; with the table of a new model, by 5 % or more.
        rounding = max(1e-4, torch.finfo(values.dtype).eps)
        if not change > rounding * reference.float().abs().max():
            raise PositionError(
                f"the model does not know where a patch is: {problem} (largest change {change:.1e}): build it with "
                f"mae_hf.models.mae.build_mae, which fills the table {table}"
            )
