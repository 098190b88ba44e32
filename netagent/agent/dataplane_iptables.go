package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/iptables"
)

// iptablesPlane is the service mode iptables: per family a pure renderer and the tool its output goes
// through.
type iptablesPlane struct {
	log      *slog.Logger
	variant  ipt.Variant // that of all tools
	why      string      // the reason for the variant
	families []*iptablesFamily
}

type iptablesFamily struct {
	name     string // "IPv4" or "IPv6", for texts
	ipv6     bool
	tool     *ipt.Tool
	renderer *iptables.Renderer
	known    bool                     // the renderer knows what is in the kernel; false before the first Replace and after an error
	restore  func(input string) error // the tool's
	tried    time.Time                // when closed frontends were last tried again
	told     map[service.Key]bool     // closed frontends that the log has
}

// chainsAtOnce bounds the chains in one input of the nftables variant's tools, whose time grows with their square.
const chainsAtOnce = 2000

// newIPTables returns the service mode iptables with the variant that the node's other programs use, or an
// error that says what is missing on this machine. A family that the kernel does not have is left out.
func newIPTables(log *slog.Logger) (service.Dataplane, error) {
	v, why, err := ipt.Choose(tools.Traces)
	if err != nil {
		return nil, tools.HintIPTables(v, err)
	}
	return newIPTablesVariant(log, v, why)
}

func newIPTablesVariant(log *slog.Logger, v ipt.Variant, why string) (service.Dataplane, error) {
	p := &iptablesPlane{log: log.With("mode", "iptables"), variant: v, why: why}
	for _, ipv6 := range []bool{false, true} {
		name := tools.Family(ipv6)
		if !ipt.Enabled(ipv6) {
			p.log.Info("the kernel does not have the family: its services are not programmed", "family", name)
			continue
		}
		tool, err := ipt.Find(ipv6, v)
		if err == nil {
			err = tool.Check()
		}
		if err != nil {
			return nil, tools.HintIPTables(v, fmt.Errorf("service mode iptables, variant %s (%s), %s: %w", v, why, name, err))
		}
		r := iptables.New(ipv6, tcpLiberal())
		if tool.NFTables() {
			r.Parts = chainsAtOnce
		}
		p.families = append(p.families, &iptablesFamily{name: name, ipv6: ipv6, tool: tool, renderer: r, restore: tool.Restore})
	}
	return p, nil
}

// Name implements service.Dataplane.
func (p *iptablesPlane) Name() string { return "iptables" }

// Replace implements service.Dataplane. It reads each family's rules once and writes the difference.
// A frontend whose rules the tools refuse is closed and named by a leftOutError.
func (p *iptablesPlane) Replace(all []service.Frontend, net service.Net) error {
	return p.write(func(f *iptablesFamily) error {
		f.known = false
		saved, err := f.tool.Save()
		if err != nil {
			return err
		}
		f.renderer.Replace(all, net, saved)
		f.tried = time.Now()
		return nil
	})
}

// Apply implements service.Dataplane. Closed frontends are tried again with it from time to time.
func (p *iptablesPlane) Apply(d service.Delta) error {
	return p.write(func(f *iptablesFamily) error {
		if !f.known {
			return errors.New("what the kernel holds is not known: call Replace first")
		}
		f.renderer.Apply(d)
		f.retry(time.Now())
		return nil
	})
}

// write renders each family and loads what came of it.
func (p *iptablesPlane) write(render func(*iptablesFamily) error) error {
	err := p.each(func(f *iptablesFamily) error {
		if err := render(f); err != nil {
			return err
		}
		return f.write(p.log)
	})
	if err != nil {
		return err
	}
	return p.leftOut()
}

// Cleanup implements service.Dataplane.
func (p *iptablesPlane) Cleanup() (removed []string, err error) {
	for _, f := range p.families {
		f.known = false
	}
	return iptablesRemains{p.variant}.Cleanup()
}

// iptablesRemains is what service mode iptables may have left in one variant's tables.
type iptablesRemains struct{ variant ipt.Variant }

// Name says whose they are.
func (r iptablesRemains) Name() string { return "iptables (" + string(r.variant) + ")" }

// Cleanup removes our chains, and makes no table. It fails with an os.ErrPermission when there are tables
// which this process may not read.
func (r iptablesRemains) Cleanup() (removed []string, err error) {
	var errs []error
	for _, ipv6 := range []bool{false, true} {
		tool, err := ipt.Find(ipv6, r.variant)
		if err != nil || !ipt.Enabled(ipv6) {
			continue // without the tool or the family nothing of it can be here
		}
		saved, err := tool.Tables()
		if err == nil {
			if input := iptables.Cleanup(saved); input != "" {
				if err = tool.Restore(input); err == nil {
					removed = append(removed, fmt.Sprintf("iptables chains BRAID-… of %s (%s)", tools.Family(ipv6), r.variant))
				}
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service rules of %s: %w", tools.Family(ipv6), err))
		}
	}
	return removed, errors.Join(errs...)
}

// each runs a step for every family: a fault in one does not keep the other from being right.
func (p *iptablesPlane) each(step func(*iptablesFamily) error) error {
	var errs []error
	for _, f := range p.families {
		if err := step(f); err != nil {
			errs = append(errs, fmt.Errorf("service rules of %s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}
