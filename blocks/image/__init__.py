"""Operations on images: float32 tensors [batch, height, width, channels] in 0..1."""
