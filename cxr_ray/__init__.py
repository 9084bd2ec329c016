"""Do saliency maps on chest X-rays show what the model used? Measured with Ray, over whole test splits."""

__version__ = "0.2.0"
