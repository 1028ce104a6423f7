"""Model families: what differs between Stable Diffusion's generations, and the settings that single files lack."""
