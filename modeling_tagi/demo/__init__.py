"""A page to try a checkpoint on: `answers.py` computes what it shows, `changes.py` draws what an adapter changes,
`page.py` is the page. Only `page.py` needs Gradio."""
