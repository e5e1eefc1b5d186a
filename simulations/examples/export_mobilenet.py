"""Export torchvision's mobilenet_v3_small at levels: ``python -m simulations.examples.export_mobilenet FOLDER a b c``.

Without levels, all five are exported. The model is not trained: the table has sizes only, no accuracies.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v3_small  # type: ignore[import-untyped]

from heterofl_flwr import elastic
from heterofl_flwr.core import LEVELS, formatting
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.export import FORMATS, export_model
from heterofl_flwr.nn import collect_moments, with_static_norm
from simulations.program import parser_of, status_of

SEED = 0


def export_levels(
    folder: Path, levels: Sequence[str], formats: Sequence[str] = tuple(FORMATS)
) -> Iterator[tuple[str, int, *tuple[int, ...]]]:
    """Export the model of each level; yield the level, its number of parameters and the file size of each format."""
    torch.manual_seed(SEED)
    model, images = mobilenet_v3_small(num_classes=10), torch.randn(8, 3, 64, 64)
    # torchvision initialises the classifier with weights so small that all logits would be nearly equal.
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    build = elastic(model, images[:1])
    for level in levels:
        part = build(rate_of(level))
        static = with_static_norm(part, collect_moments(part, [images]))
        sizes = export_model(static, images, folder / level, formats=formats)
        yield level, sum(one.numel() for one in part.parameters()), *sizes.values()


def main() -> None:
    parser = parser_of("simulations.examples.export_mobilenet", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help="a to e, or rates")
    args = parser.parse_args()
    rows = [
        [level, f"{parameters:,}", *map(formatting.size, sizes)]
        for level, parameters, *sizes in export_levels(args.folder, args.levels or tuple(LEVELS))
    ]
    print(formatting.render(["level", "parameters", *FORMATS], rows, "table"))


if __name__ == "__main__":
    sys.exit(status_of("export_mobilenet", main))
