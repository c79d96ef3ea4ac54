"""What is done to a face: each degradation, and chains of them."""

from facelab.base.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "chain": ["Chain", "draw_chain"],
        "camera": ["GaussianBlur", "GaussianNoise", "Greyscale", "JPEG"],
        "masks": ["FaceMask"],
        "mixture": ["OneOf"],
        "motion": ["MotionBlur"],
        "occlusion": ["Block", "Part", "Worn"],
        "rain": ["HeavyRain"],
        "resample": ["Downsample", "resize"],
    },
)
