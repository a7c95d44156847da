"""A short story, written for this book: what a Transformer small enough for a page learns from.

It repeats its words on purpose. 147 different ones in 629, punctuation counted, leave something to
be predicted and something to be guessed.
"""

__all__ = ["TEXT"]

TEXT = """\
A traveller came down from the hills one evening and asked the ferryman to take her across the
river. The ferryman looked at the water. It was high, and it was fast, and it carried branches
from the forest. "Wait until the morning," he said. "In the morning the river will be low." But
in the morning the river was as high as before, and the traveller asked again.

"How do you know when it is safe?" she said. "I watch the post," said the ferryman. There was a
post in the water, and on the post there was a white line. When the water was below the line,
the ferry went across. When the water was above the line, the ferry stayed where it was. "And
how long must we wait?" said the traveller. "I do not know," said the ferryman. "The rain falls
in the hills, and the water comes when it comes."

So they waited. They ate bread and fish, and they talked of the hills and of the sea. The
traveller had seen the sea once, when she was a child. The ferryman had never seen it, but he
knew that the river went there, and so he thought of it often. In the evening they looked at the
post again. The water was at the line. It rose a little above the line, and it fell a little
below the line, and then it rose again.

"It is strange," said the traveller. "All day the water rose, and I thought that it would rise
for ever. Now it goes up and down, and it stays where the line is." "It is not strange," said
the ferryman. "Above the line there is a meadow. When the river is high, the water goes into the
meadow, and then the river falls. When the river is low, the meadow gives the water back. I did
not choose the line. I painted it where the river stays."

The traveller thought about this for a long time. "Then the line does not tell the river where
to stay," she said. "The meadow does." "The meadow does," said the ferryman, "and the rain, and
the hills. The line tells only me." And he took the rope from the post, and he took the
traveller across the river in the dark, while the water went up a little and down a little, and
the branches went past them to the sea.

On the other side there was a house with a light in the window. An old woman came out of the
house, and she gave them bread and fish. "Was the water above the line or below the line?" said
the old woman. "It was at the line," said the traveller. "It is always at the line in the end,"
said the old woman, "but never for the same reason." Then they sat by the fire, and the ferryman
told them of the rain, and the traveller told them of the sea, and in the morning the river was
low.
"""
