"""Restored faces, and what is measured of them."""

from facelab.base.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "metrics": ["CONVENTIONS", "lpips_alex", "psnr", "psnr_ssim", "ssim"],
        "judges": ["Judges"],
        "set_metrics": ["frechet_distance", "kid"],
        "measures": ["measure_of"],
        "finder": ["find_faces", "load_detector"],
        "photographs": ["Restorer", "open_photograph", "put_back"],
    },
)
