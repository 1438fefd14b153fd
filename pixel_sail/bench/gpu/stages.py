"""The stages of the check on a GPU, and their times: known without what runs them."""

# Stage -> its seconds at most; in a run of more than MINUTES, in proportion. The last one may take all that the others
# leave.
STAGES = {
    "machine": 40,
    "kernels": 90,
    "parity": 50,
    "speed": 150,
    "scenes": 60,
    "training": 90,
    "generation": 50,
    "scratch": 480,
}
MINUTES = 8.0
