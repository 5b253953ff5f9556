"""LLM fine-tuning as a DAG of cached, comparable stages: the library under the stage scripts."""
