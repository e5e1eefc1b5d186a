"""Export torchvision's mobilenet_v3_small at levels: ``python -m simulations.examples.export_mobilenet FOLDER a b c``.

Without levels, at all five. It is not trained: the table tells what each level costs, not what it is worth.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v3_small  # type: ignore[import-untyped]

from heterofl_flwr import elastic
from heterofl_flwr.core import LEVELS, formatting
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.export import FORMATS, export_model, write_table
from heterofl_flwr.nn import collect_moments, with_static_norm
from simulations.program import parser_of, status_of

SEED = 0


def export_levels(folder: Path, levels: Sequence[str], formats: Sequence[str] = tuple(FORMATS)) -> None:
    torch.manual_seed(SEED)
    model, images = mobilenet_v3_small(num_classes=10), torch.randn(8, 3, 64, 64)
    # torchvision's first weights of the classifier are so small that all logits would be nearly equal.
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    build = elastic(model, images[:1])
    for level in levels:
        rate = rate_of(level)
        part = build(rate)
        static = with_static_norm(part, collect_moments(part, [images]))
        facts = {"level": level, "rate": rate}
        export_model(static, images, folder / level, formats=formats, facts=facts)


def main() -> None:
    parser = parser_of("simulations.examples.export_mobilenet", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help="a to e, or rates")
    args = parser.parse_args()
    export_levels(args.folder, args.levels or tuple(LEVELS))
    for table in write_table(args.folder, "torchvision's mobilenet_v3_small, not trained, on images of 3x64x64."):
        print(formatting.render(*table, "table"), end="\n\n")


if __name__ == "__main__":
    sys.exit(status_of("export_mobilenet", main))
