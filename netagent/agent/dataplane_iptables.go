package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/iptables"
)

// iptablesPlane is the service mode iptables: per family a pure renderer and the tool its output goes
// through.
type iptablesPlane struct {
	log      *slog.Logger
	families []*iptablesFamily
}

type iptablesFamily struct {
	name     string // "IPv4" or "IPv6", for texts
	tool     *ipt.Tool
	renderer *iptables.Renderer
	known    bool // the renderer knows what is in the kernel; false before the first Replace and after an error
}

// newIPTables returns the service mode iptables, or an error that says what is missing on this
// machine. A family that the kernel does not have is left out.
func newIPTables(log *slog.Logger) (service.Dataplane, error) { return newIPTablesWith(log, ipt.Find) }

func newIPTablesWith(log *slog.Logger, find func(ipv6 bool) (*ipt.Tool, error)) (service.Dataplane, error) {
	p := &iptablesPlane{log: log.With("mode", "iptables")}
	for _, ipv6 := range []bool{false, true} {
		name := familyName(ipv6)
		if !ipt.Enabled(ipv6) {
			p.log.Info("the kernel does not have the family: its services are not programmed", "family", name)
			continue
		}
		tool, err := find(ipv6)
		if err != nil {
			return nil, hintImage(fmt.Errorf("service mode iptables, %s: %w", name, err))
		}
		p.families = append(p.families, &iptablesFamily{name: name, tool: tool, renderer: iptables.New(ipv6)})
	}
	return p, nil
}

func familyName(ipv6 bool) string {
	if ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// Name implements service.Dataplane.
func (p *iptablesPlane) Name() string { return "iptables" }

// Replace implements service.Dataplane. It reads each family's rules once and writes the difference.
func (p *iptablesPlane) Replace(all []service.Frontend, net service.Net) error {
	return p.each(func(f *iptablesFamily) error {
		f.known = false
		saved, err := f.tool.Save()
		if err != nil {
			return err
		}
		f.renderer.Replace(all, net, saved)
		return f.write(p.log)
	})
}

// Apply implements service.Dataplane.
func (p *iptablesPlane) Apply(d service.Delta) error {
	return p.each(func(f *iptablesFamily) error {
		if !f.known {
			return errors.New("what the kernel holds is not known: call Replace first")
		}
		f.renderer.Apply(d)
		return f.write(p.log)
	})
}

// Cleanup implements service.Dataplane.
func (p *iptablesPlane) Cleanup() (removed []string, err error) {
	err = p.each(func(f *iptablesFamily) error {
		f.known = false
		saved, err := f.tool.Save()
		if err != nil {
			return err
		}
		input := iptables.Cleanup(saved)
		if input == "" {
			return nil
		}
		if err := f.tool.Restore(input); err != nil {
			return err
		}
		removed = append(removed, "iptables chains BRAID-… of "+f.name)
		return nil
	})
	return removed, err
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

// write loads what the renderer has pending; nothing is run when that is nothing.
func (f *iptablesFamily) write(log *slog.Logger) error {
	f.known = false
	if input := f.renderer.Pending(); input != "" {
		begin := time.Now()
		if err := f.tool.Restore(input); err != nil {
			return err
		}
		log.Debug("service rules written", "family", f.name, "bytes", len(input), "took", time.Since(begin))
	}
	f.renderer.Commit()
	f.known = true
	return nil
}
