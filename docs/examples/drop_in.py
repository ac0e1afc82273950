"""A training loop as anyone has it. Any of the commented lines in place of Adam's is all it takes.

python docs/examples/drop_in.py
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import natgrad  # noqa: F401  for the commented lines

torch.manual_seed(0)
x = torch.linspace(-1, 1, 256).unsqueeze(1)
loader = DataLoader(TensorDataset(x, torch.sin(4 * x)), batch_size=256)
model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))

optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
# optimizer = natgrad.optim.NaturalGradient(model, likelihood="normal", max_kl=1e-2)
# optimizer = natgrad.optim.HessianFree(model, loss="squared_error")
# optimizer = natgrad.optim.LevenbergMarquardt(model)
# optimizer = natgrad.optim.TrustRegionNewton(model.parameters())
# optimizer = natgrad.optim.NonlinearCG(model.parameters())
# optimizer = natgrad.optim.KFAC(model, likelihood="normal", lr=0.1, damping=1e-3)
# optimizer = natgrad.optim.KFAC(model, likelihood="normal", lr=0.1, corrected=True)
# optimizer = natgrad.optim.AdaptiveKFAC(model, likelihood="normal", damping=1e-3)

scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.98)
for _ in range(50):
    for inputs, targets in loader:

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    scheduler.step()

torch.save(optimizer.state_dict(), "optimizer.pt")
optimizer.load_state_dict(torch.load("optimizer.pt", weights_only=True))
mean_squared_error = F.mse_loss(model(x), torch.sin(4 * x)).item()
print(f"{type(optimizer).__name__}: {mean_squared_error:.1e}", getattr(optimizer, "last_step", ""))
