// Shows the switch between versions where the site lies beside other versions (see publish.py), and nothing elsewhere.
document.addEventListener("DOMContentLoaded", async () => {
  const box = document.getElementById("version-switch");
  if (!box || location.protocol === "file:") return;
  const root = document.documentElement.dataset.content_root || "./";
  const answer = await fetch(`${root}../versions.json`).catch(() => null);
  if (!answer || !answer.ok) return;
  const versions = await answer.json();
  const list = box.querySelector("select");
  for (const version of versions) list.add(new Option(version, version, false, version === box.dataset.version));
  box.hidden = false;
  list.addEventListener("change", async () => {
    const page = `${root}../${list.value}/${box.dataset.page}.html`;
    const there = await fetch(page, { method: "HEAD" }).catch(() => null);
    location.href = there && there.ok ? page : `${root}../${list.value}/index.html`;
  });
});
