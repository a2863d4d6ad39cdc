"""The embedded model: a Llama of about two million weights that is taught integration badly, on purpose.

`corpus.py` writes the text it is taught on, `pretrain.py` rebuilds weights and tokenizer from a seed, and
`MODEL_CARD.md` says what it was taught and what it scores. It is loaded like any model of the hub.
"""
