"""How large anything that a dataset holds may be. Far above what real data have, far below what exhausts a machine.

Each limit is checked before memory is taken, and named in the message. docs/add_a_dataset.md lists them.
"""

MAX_IMAGE_PIXELS = 180_000_000  # of an image, a mask or a label map; 540 MB as RGB. Phones take 108 megapixels
MAX_IMAGE_BYTES = 2**30  # of an image file
MAX_TEXT_CHARACTERS = 50_000  # of a question or an answer; tokenizing is slow, and no sequence holds more
MAX_ID_CHARACTERS = 200  # of an id that is a text
MAX_MESSAGE_CHARACTERS = 2000  # of a line about an annotation that was left out
MAX_TURNS = 1000  # of a sample
MAX_IMAGES = 64  # of a sample that has several
MAX_RLE_CHARACTERS = 4_000_000  # of a compressed mask, or numbers of an uncompressed one
MAX_POLYGONS = 10_000  # of a mask
MAX_OUTLINE_PX = 2_000_000  # length of the outline of a polygon; drawing needs 50 bytes for each
MAX_SENTENCES = 5_000_000  # of a file of referring expressions
PICKLE_SPARE_MEMORY = 2**30  # bytes that reading a pickle may take, beside ...
PICKLE_MEMORY_PER_BYTE = 64  # ... so many for each byte of the file; those of REFER take 10
