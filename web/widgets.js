/**
 * Finding and extending what the editor made of a node.
 */

/**
 * @param {object} node
 * @param {string} name
 * @returns {object | undefined}
 */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/**
 * Call `then` after the function `name` of `owner`, if it has one.
 * @param {object} owner
 * @param {string} name
 * @param {Function} then
 */
export function after(owner, name, then) {
  const before = owner[name];
  owner[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}
