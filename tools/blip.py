"""Captions by BLIP (arXiv 2201.12086) with transformers, from local weights or the hub."""

from typing import Any

from PIL import Image

from library.errors import InputError


class Blip:
    """A captioning model, e.g. Salesforce/blip-image-captioning-base or a folder that holds it."""

    def __init__(self, place: str) -> None:
        """
        Raises:
            InputError: a model that is neither a folder nor on the hub.
        """
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.processor: Any = BlipProcessor.from_pretrained(place)
            self.model: Any = BlipForConditionalGeneration.from_pretrained(place).to(self.device).eval()
        except (OSError, ValueError) as error:
            raise InputError(
                f"blip '{place}' cannot be opened: {str(error).splitlines()[0]}; give a folder or hub id of a BLIP "
                "captioning model"
            ) from error

    def caption(self, picture: Image.Image) -> str:
        """One sentence, decoded greedily, so that the same picture always gets the same caption."""
        import torch

        inputs = self.processor(images=picture, return_tensors="pt").to(self.device)
        with torch.no_grad():
            tokens = self.model.generate(**inputs, max_new_tokens=30, do_sample=False, num_beams=1)
        return str(self.processor.decode(tokens[0], skip_special_tokens=True)).strip()
