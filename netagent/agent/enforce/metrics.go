package enforce

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// counters sums up what the kernel's rules count, by policy. The kernel's numbers begin anew when a table
// is made anew, and go with a chain; these do not.
type counters struct {
	mu     sync.Mutex
	chains map[policy.Mark][]model.Key // the policies of each chain
	last   map[policy.Mark]uint64      // what the kernel said last
	era    uint64                      // of last
	totals map[counted]uint64
}

// counted is a policy and a direction; of pods that are not known, no policy.
type counted struct {
	policy    model.Key
	direction policy.Direction
	audit     bool
}

// follow learns which chains there are; all says that delta tells of everything.
func (c *counters) follow(d policy.Delta, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if all || c.chains == nil {
		c.chains = map[policy.Mark][]model.Key{{Direction: policy.Ingress}: {{}}, {Direction: policy.Egress}: {{}}}
	}
	for _, x := range d.DeleteChains {
		delete(c.chains, policy.MarkOf(x))
	}
	for _, x := range d.Chains {
		var list []model.Key
		for _, t := range x.Tiers {
			for _, s := range t.Sections {
				list = append(list, s.Policy)
			}
		}
		c.chains[policy.MarkOf(x)] = list
	}
}

// sum reads the kernel's numbers. A packet that several policies isolate from counts for each of them.
func (c *counters) sum(plane packetFilter) (map[counted]uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, era, err := plane.Counts(slices.Collect(maps.Keys(c.chains)))
	if err != nil {
		return nil, err
	}
	if era != c.era {
		c.last, c.era = nil, era
	}
	totals := map[counted]uint64{}
	for m, list := range c.chains {
		more := now[m]
		if last := c.last[m]; last <= more {
			more -= last
		}
		for _, k := range list {
			n := counted{k, m.Direction, m.Audit}
			if _, ok := totals[n]; !ok {
				totals[n] = c.totals[n]
			}
			totals[n] += more
		}
	}
	c.last, c.totals = now, totals
	return totals, nil
}

var (
	descDenied   = prometheus.NewDesc("braid_policy_denied_packets_total", "Packets to or from pods of this node that no rule of the policies isolating them allowed. A packet counts for each of these policies.", []string{"namespace", "policy", "direction"}, nil)
	descAudited  = prometheus.NewDesc("braid_policy_audited_packets_total", "Packets that would have been denied, were their namespace not under audit.", []string{"namespace", "policy", "direction"}, nil)
	descUnknown  = prometheus.NewDesc("braid_policy_unknown_denied_packets_total", "Packets denied because their pod is not known to the agent, or not yet.", []string{"direction"}, nil)
	descFaulty   = prometheus.NewDesc("braid_policy_faulty", "Policies with pods on this node that are not in force as they are written: closed ones allow nothing, partial ones less than they say.", []string{"state"}, nil)
	descUnder    = prometheus.NewDesc("braid_policy_audited_namespaces", "Namespaces under audit with pods on this node: policies deny these nothing.", nil, nil)
	descDropLog  = prometheus.NewDesc("braid_policy_log_packets_total", "Denied packets that the kernel told the agent of: logged; repeated (a line like it was logged lately, or there were too many); stale (allowed by the time they were looked at); lost (readings in which the kernel had more than it could keep).", []string{"outcome"}, nil)
	descPodState = prometheus.NewDesc("braid_policy_pods", "Pods of this node that policies are enforced for, by whether any isolates them.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (p *Enforcer) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(p, ch) }

// Collect implements prometheus.Collector.
func (p *Enforcer) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	totals, err := p.counts.sum(p.plane)
	if err != nil {
		p.log.Warn("the counters of policies cannot be read", "err", err)
	}
	for n, v := range totals {
		switch {
		case n.policy.Name == "":
			send(descUnknown, prometheus.CounterValue, float64(v), n.direction.String())
		case n.audit:
			send(descAudited, prometheus.CounterValue, float64(v), n.policy.Namespace, n.policy.Name, n.direction.String())
		default:
			send(descDenied, prometheus.CounterValue, float64(v), n.policy.Namespace, n.policy.Name, n.direction.String())
		}
	}
	closed, partial := 0, 0
	for _, f := range p.compiler.Faults() {
		if f.Closed {
			closed++
		} else {
			partial++
		}
	}
	send(descFaulty, prometheus.GaugeValue, float64(closed), "closed")
	send(descFaulty, prometheus.GaugeValue, float64(partial), "partial")
	send(descUnder, prometheus.GaugeValue, float64(len(p.compiler.Audited())))
	send(descPodState, prometheus.GaugeValue, float64(p.isolated.Load()), "isolated")
	send(descPodState, prometheus.GaugeValue, float64(p.open.Load()), "open")
	send(descDropLog, prometheus.CounterValue, float64(p.drops.logged.Load()), "logged")
	send(descDropLog, prometheus.CounterValue, float64(p.drops.repeated.Load()), "repeated")
	send(descDropLog, prometheus.CounterValue, float64(p.drops.stale.Load()), "stale")
	send(descDropLog, prometheus.CounterValue, float64(p.drops.lost.Load()), "lost")
}
