"""The network: any Hugging Face decoder, mixed attention, fusion of patches and prompts, mask head, generation."""
