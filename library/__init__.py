"""The suite's library: four rooms (data, diffusion, privacy, training), the audit above them, the ground below."""
