"""The embedded model: a Llama of about two million weights that is taught integration badly, on purpose.

`MODEL_CARD.md` describes its training data and scores. It is loaded like any model of the hub. In the repository,
benchmarks/tiny_pretrain.py rebuilds weights and tokenizer from a seed, on text that benchmarks/tiny_corpus.py writes.
"""
