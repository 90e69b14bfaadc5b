"""Operations as pure functions of arrays: plain, deformable and adaptive convolutions."""
