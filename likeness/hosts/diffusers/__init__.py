"""The diffusers host: headless sampling on a UNet2DConditionModel."""
