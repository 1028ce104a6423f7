"""The robustness part of an audit: the same pictures and noise for the base, the LoRA, and the LoRA cut to ranks."""

from library.assembly.audit_lora import Subject
from library.audit.report.beside import Beside


def measured(subject: Subject) -> Beside:
    """Measure one LoRA."""
    raise NotImplementedError
