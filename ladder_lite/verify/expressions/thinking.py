"""What a reasoning model says once it has done thinking: answers that it considers on the way are not its answer.

Such models write `<think> ... </think>` before their reply. Where the chat template itself opens the thoughts, as that
of DeepSeek-R1-Distill does, a reply holds only the closing tag, and one that was cut off while thinking holds none:
that cannot be seen in its text, so the recipe says it (`task.thinking`).
"""


def said(text: str, thinking: bool = False) -> str:
    """The part of a reply behind its thoughts, empty where they do not end; with `thinking`, every reply has some."""
    _, closed, behind = text.rpartition("</think>")
    if thinking and not closed:
        return ""
    return behind.partition("<think>")[0]  # what is opened there was cut off
