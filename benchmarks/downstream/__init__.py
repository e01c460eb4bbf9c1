"""What synthetic images are good for: segmenting tumours, and registering MR to ultrasound."""
