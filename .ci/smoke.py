"""Nine updates under `universal` with the installed package; prints where that is, and the rates: `make smoke`."""

import json
import sys

import torch

import hf_adaptive_lr
from hf_adaptive_lr import AutoController, ControlledLR

model = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
universal = AutoController.from_pretrained("universal")
scheduler = ControlledLR(optimizer, universal, model=model, total_steps=9)
for _ in range(9):
    loss = model(torch.ones(4, 3)).square().mean()
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
sys.stdout.write(json.dumps({"file": hf_adaptive_lr.__file__, "rates": scheduler.lr_history()}) + "\n")
