// A button on each block of code that copies its text; without the prompt of a console.
document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return; // browsers have it on https://, localhost and files alone
  for (const block of document.querySelectorAll("div.highlight")) {
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("pre").textContent.replace(/^\$ /gm, "").trimEnd());
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
});
