"""quickstart: a Flower / PyTorch app."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader


def block(inputs, outputs):
    """Convolution, batch norm, ReLU and pooling."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


class Net(nn.Module):
    """Model (simple CNN with batch norm)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(1, 16), block(16, 32))
        self.classifier = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x):
        """Return the logits."""
        return self.classifier(self.features(x).flatten(1))


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """Load one part of the digits: 80 % to train, 20 % to test."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    own = range(partition_id, len(labels), num_partitions)
    data = [{"img": images[i], "label": int(labels[i])} for i in own]
    split = len(data) * 4 // 5
    trainloader = DataLoader(data[:split], batch_size=batch_size, shuffle=True)
    testloader = DataLoader(data[split:], batch_size=batch_size)
    return trainloader, testloader


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set."""
    net.to(device)  # move model to GPU if available
    criterion = torch.nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            images = batch["img"].to(device)
            labels = batch["label"].to(device)
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Validate the model on the test set."""
    net.to(device)
    net.eval()
    criterion = torch.nn.CrossEntropyLoss()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in testloader:
            images = batch["img"].to(device)
            labels = batch["label"].to(device)
            outputs = net(images)
            loss += criterion(outputs, labels).item()
            correct += (torch.max(outputs.data, 1)[1] == labels).sum().item()
    accuracy = correct / len(testloader.dataset)
    return loss / len(testloader), accuracy
