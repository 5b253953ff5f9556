"""The options of every key that names a dtype."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
