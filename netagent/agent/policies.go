package agent

import (
	"slices"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/agent/enforce"
)

// notePolicies tells the compiler of changes, or the log that nobody enforces them.
func (a *Agent) notePolicies(rev uint64, changes []model.Change) {
	if a.policies != nil {
		if a.policies.Apply(rev, changes) {
			a.byName["policy"].Kick()
		}
		return
	}
	if slices.ContainsFunc(changes, func(c model.Change) bool { return c.Kind == model.KindNetworkPolicy && c.Old == nil }) {
		a.warnPolicy.Do(func() {
			a.log.Warn("NetworkPolicy objects are read but NOT enforced by this agent", "because", a.cfg.notEnforced())
		})
	}
}

// endEnforcement takes away what an agent that enforced policy has left: without one that follows the
// cluster, new pods would be refused for ever.
func (a *Agent) endEnforcement() {
	removed, err := enforce.Remove()
	if err != nil {
		a.log.Error("policy is off, and its tables are still in force", "err", err)
	}
	for _, r := range removed {
		a.log.Warn("policy is off: removed what was in force", "what", r)
	}
}
