// Sends one question and writes both answers as plain text while they come.
(() => {
  const form = document.getElementById('ask');
  const status = document.getElementById('status');
  const question = document.getElementById('question');
  const sides = { base: document.getElementById('base'), adapter: document.getElementById('adapter') };

  function show(event) {
    if (event.error) status.textContent = event.error.text;
    else if (event.message !== undefined) status.textContent = event.message;
    else if (event.delta && sides[event.which]) sides[event.which].textContent += event.delta;
  }

  async function follow(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split('\n\n');
      rest = parts.pop();
      for (const part of parts) show(JSON.parse(part.replace(/^data: /, '')));
    }
  }

  form.addEventListener('submit', async (submitted) => {
    submitted.preventDefault();
    const button = form.querySelector('button');
    button.disabled = true;
    status.textContent = '';
    for (const side of Object.values(sides)) side.textContent = '';
    try {
      const answer = await fetch('/view/chat/' + encodeURIComponent(form.dataset.run), {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ messages: [{ role: 'user', content: question.value }], which: 'both' }),
      });
      if (answer.ok) await follow(answer);
      else show(await answer.json());
    } catch (problem) {
      status.textContent = 'The studio did not answer.';
    } finally {
      button.disabled = false;
    }
  });
})();
