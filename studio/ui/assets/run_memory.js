// Memory of the run in the live view, predicted and measured: asked for when the run is shown, when
// its state changes, and now and then while it runs. The studio draws it; without a record it hides.
const MEMORY_EVERY = 5;  // polls
let memoryOf = '', memoryDrawn = '';
async function showMemory() {
  const id = run, box = q('.l-memory');
  if (memoryOf !== id) { memoryOf = id; memoryDrawn = ''; box.hidden = true; box.replaceChildren(); }
  if (!id) return;
  try {
    const answer = await fetch('api/runs/' + encodeURIComponent(id) + '/memory');
    if (!answer.ok || id !== run) return;
    const {html} = await answer.json();
    if (id !== run) return;
    if (memoryDrawn !== html) { memoryDrawn = html; box.innerHTML = html; }  // a tooltip stays
    box.hidden = !html;
  } catch (error) { console.info('memory of the run: ' + error); }
}
