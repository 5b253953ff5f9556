"""Names of compute dtypes."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
