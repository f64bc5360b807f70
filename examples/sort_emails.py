"""Sorts the mails of an mbox file into one file for each folder, by an instruction:

    python examples/sort_emails.py examples/inbox.mbox sorted
"""

import argparse
import mailbox
from pathlib import Path

from modeling_tagi import TagiModel

INSTRUCTION = "Decide whether the customer is happy or unhappy."
FOLDERS = ["happy", "unhappy"]


def text_of(mail: mailbox.mboxMessage) -> str:
    """Returns a mail's first plain text, its white space as single spaces; of others than that, the subject."""
    for part in mail.walk():
        if part.get_content_type() == "text/plain":
            text = part.get_payload(decode=True).decode(part.get_content_charset("utf-8"), errors="replace")
            return " ".join(text.split())
    return str(mail["subject"])


def sort_mails(inbox: Path, output: Path, checkpoint: str, instruction: str, folders: list[str]) -> dict[str, int]:
    """Writes `output/FOLDER.mbox` for each folder that gets mails, and returns how many each got.

    Raises:
        FileExistsError: if one of these files is there, since mails would be added to it a second time.
    """
    files = {folder: output / f"{folder}.mbox" for folder in folders}
    there = [str(file) for file in files.values() if file.exists()]
    if there:
        raise FileExistsError(f"these mails would be added to {', '.join(there)}; move that, or name another folder")
    mails = list(mailbox.mbox(inbox, create=False))
    choose = TagiModel.from_pretrained(checkpoint).function(instruction, options=folders)
    chosen = choose([text_of(mail) for mail in mails])
    output.mkdir(parents=True, exist_ok=True)
    for folder in set(chosen):
        box = mailbox.mbox(files[folder])
        for mail in (mail for mail, its in zip(mails, chosen) if its == folder):
            box.add(mail)
        box.close()
    return {folder: chosen.count(folder) for folder in folders}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inbox", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", default="checkpoints/smollm2-135m")
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    options = parser.parse_args()
    print(sort_mails(**vars(options)))
