"""The small Llama, the embedded storyteller, and where other models keep their blocks."""
