"""The maps of an image study as pictures: what `search.maps` has kept, drawn over the test images."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.report.parts import Gallery, Picture

FILE = "maps.npz"
SIDE = 112  # pixels of a picture
HEAT = np.array([[13, 8, 70], [122, 20, 110], [204, 71, 86], [248, 149, 64], [240, 249, 33]], dtype=np.float64)


def gallery(run: Path) -> Gallery | None:
    """None for a run without maps. What the file holds: `search.maps.write`."""
    path = run / FILE
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        images, classes, arms = kept["images"], kept["classes"], [str(a) for a in kept["arms"]]
        teacher, mask, students = kept["teacher"], kept["mask"], kept["students"]
        layer = str(kept["layer"])
    headings = ["image", "teacher", "causal mask", *arms]
    rows = []
    for i, image in enumerate(images):
        title = f"test image {i + 1}, class {int(classes[i])}"
        pictures = [Picture(_png(_shown(image)), title)]
        for name, maps in zip(headings[1:], [teacher, mask, *students], strict=True):
            what = "causal mask" if name == "causal mask" else f"attention map of {name}"
            pictures.append(Picture(_png(_over(image, maps[i])), f"{title}: {what}"))
        rows.append((f"class {int(classes[i])}", pictures))
    caption = (
        f"Attention maps at {layer} (the sum over channels of squared activations), each scaled to its largest value: "
        "bright where the network looks. Causal mask: where in the image the teacher's evidence for the label lies "
        "(LayerCAM, no percentile cut). Students as deployed, of the confirmation seed with the median result."
    )
    return Gallery(headings, rows, caption)


def _shown(image: NDArray[np.uint8]) -> Image.Image:
    """(channels, height, width) -> a picture with pixels that stay visible."""
    pixels = np.moveaxis(image, 0, -1)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _over(image: NDArray[np.uint8], values: NDArray[Any]) -> Image.Image:
    """The map in colours over a grey image."""
    scaled = values.astype(np.float64) / max(float(values.max()), 1e-12)
    field = Image.fromarray((255 * scaled).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    at = np.asarray(field, dtype=np.float64) / 255 * (len(HEAT) - 1)
    low = np.minimum(at.astype(int), len(HEAT) - 2)
    colour = HEAT[low] + (at - low)[..., None] * (HEAT[low + 1] - HEAT[low])
    grey = np.asarray(_shown(image).convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((0.72 * colour + 0.28 * grey).astype(np.uint8))


def _png(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.quantize(64).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
