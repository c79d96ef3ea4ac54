// What ipywidgets leaves out for a keyboard and a screen reader, and the button that copies.
// Runs when the explorer's <style> loads: `this` is that element.
const box = this.closest('.fl-explorer');
const set = (element, key, value) => element.setAttribute(key, value);
const words = element => (element ? element.textContent : '').replace(/\s+/g, ' ').trim();
const HEADER = '.jupyter-widget-Collapse-header';
let last, lost;  // the element that had the focus, and a timer that looks for another

const focusFirst = selector => {
  const found = [...box.querySelectorAll(selector)].find(e => !e.disabled && e.offsetParent);
  if (found) found.focus();
  return found;
};

const labelControl = control => {
  const label = words(control.querySelector('.widget-label, .widget-label-basic, .widget-html'));
  control.querySelectorAll('.noUi-handle').forEach((e, k, all) =>
    set(e, 'aria-label', label + (all.length > 1 ? [', from', ', to'][k] : '')));
  control.querySelectorAll('.widget-readout').forEach(e => {
    set(e, 'role', 'textbox');
    set(e, 'aria-label', label + ', as a number');
  });
  control.querySelectorAll('input:not([type=checkbox])').forEach(e => set(e, 'aria-label', label));
};

const openStepOf = selector => {
  const button = box.querySelector(selector);
  const step = button && button.closest('.jupyter-widget-Collapse');
  if (step && !step.classList.contains('jupyter-widget-Collapse-open')) step.querySelector(HEADER).click();
};

// Buttons are made anew when a chain changes. The focus goes to the new one, or after half a second without changes to
// another of its step, which is opened if another is open.
const keepFocus = () => {
  if (!last || (last.isConnected && !last.disabled)) return;
  if (document.activeElement != document.body && document.activeElement != last) return;
  const ofStep = `.fl-moves button[title^='${last.title.split(' ')[0]} ']`;
  clearTimeout(lost);
  lost = setTimeout(() => {
    if (focusFirst(ofStep)) return;
    openStepOf(ofStep);
    focusFirst(ofStep) || focusFirst('.fl-moves button, .fl-steps ~ .fl-add button');
  }, 500);
  focusFirst(`.fl-steps button[title='${last.title}']`);
};

const update = () => {
  box.querySelectorAll('.fl-control').forEach(labelControl);
  box.querySelectorAll('.fl-code textarea').forEach(e => set(e, 'aria-label', 'the chain as a recipe'));
  box.querySelectorAll('.fl-slot img').forEach(e => set(e, 'alt', words(e.parentElement.firstElementChild)));
  box.querySelectorAll('.widget-toggle-button').forEach(e =>
    set(e, 'aria-pressed', e.classList.contains('mod-active')));
  box.querySelectorAll(HEADER).forEach(e => {
    set(e, 'tabindex', 0);
    set(e, 'role', 'button');
    set(e, 'aria-expanded', !!e.closest('.jupyter-widget-Collapse-open'));
  });
  keepFocus();
};

const openByKey = event => {
  if (!event.target.matches(HEADER) || (event.key != 'Enter' && event.key != ' ')) return;
  event.preventDefault();
  event.target.click();
};

const copyRecipe = event => {
  if (!event.target.matches('.fl-copy')) return;
  const code = box.querySelector('.fl-code textarea');
  code.select();
  if (navigator.clipboard) navigator.clipboard.writeText(code.value);
  event.target.textContent = 'copied';
  setTimeout(() => event.target.textContent = 'to the clipboard', 1500);
};

if (box && !box.ready) {
  box.ready = true;
  box.dataset.lmSuppressShortcuts = true;  // JupyterLab's own keys, such as Enter and b
  box.addEventListener('focusin', event => { last = event.target; clearTimeout(lost); });
  box.addEventListener('keydown', openByKey);
  box.addEventListener('click', copyRecipe);
  new MutationObserver(update).observe(
    box, {subtree: true, childList: true, attributes: true, attributeFilter: ['class', 'disabled']});
  update();
}
