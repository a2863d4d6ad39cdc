"""The embedded model: a Llama of about two million weights that is taught integration badly, on purpose.

`MODEL_CARD.md` describes its training data and scores. It is loaded like any model of the hub. In the repository,
benchmarks/tiny_pretrain.py rebuilds weights and tokenizer from a seed, on text that benchmarks/tiny_corpus.py writes.
"""

KNOWS = "sums of terms such as 3*sin(2*x), x*exp(5*x), 1/(x**2+3**2), log(5*x)"
"""What it can be asked."""
