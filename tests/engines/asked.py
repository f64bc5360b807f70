"""What engines are asked: 20 instructions, and 10 inputs for each."""

INSTRUCTIONS = [
    "Write the first word of the input.", "Write the last word of the input.", "Write the input in capital letters.",
    "Write the input in lower case.", "Count the words of the input.", "Write the words in reverse order.",
    "Write the longest word of the input.", "Write the shortest word of the input.", "Repeat the input twice.",
    "Write the first letter of each word.", "Leave out the first word.", "Leave out the last word.",
    "Decide whether the text is positive or negative.", "Translate the text into French.", "Summarise the text.",
    "Write the words in alphabetical order.", "Is there a colour in the text? Answer yes or no.",
    "Write the second word of the input.", "Replace every vowel with a star.", "What is the text about?",
]  # fmt: skip
INPUTS = [
    "The train was late again and nobody told us why.", "dog plum saw hat car", "A blue lamp stood on the old table.",
    "We loved every minute of the film.", "seven green bottles", "Her brother sells bread at the market on Sundays.",
    "It broke after two days, do not buy it.", "Rain is expected in the north tomorrow.", "one two three four six",
    "My cat sleeps all day and hunts at night.",
]  # fmt: skip
