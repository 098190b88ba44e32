package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/egress"
)

// egressNFTables joins the nftables renderer of egress rules to the kernel.
type egressNFTables struct {
	conn  *nft.Conn
	state egress.State
}

// newEgressNFTables opens the nftables of the calling thread's network namespace. It fails where the kernel cannot do what the
// rules need, and changes nothing.
func newEgressNFTables(r *egress.Rules) (egressPlane, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	p := &egressNFTables{conn: conn}
	for _, f := range egress.Families {
		t, _ := egress.Table(f, r)
		t.Name += "-probe"
		err := conn.Check([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: f, Table: t.Name, Def: &t}})
		switch {
		case err == nil:
			p.state.Families = append(p.state.Families, f)
		case f == desired.NFTIPv6 && !tools.HaveIPv6():
		default:
			conn.Close()
			return nil, fmt.Errorf("this kernel cannot run the nftables rules (nf_tables with nft_masq and nft_ct is needed): %w", err)
		}
	}
	return p, nil
}

func (p *egressNFTables) Name() string                { return "nftables" }
func (p *egressNFTables) Close()                      { p.conn.Close() }
func (p *egressNFTables) generation() (uint32, error) { return p.conn.Generation() }
func (p *egressNFTables) commits() uint32             { return p.conn.Commits() }

func (p *egressNFTables) apply(r *egress.Rules) error {
	ops, err := p.state.Apply(r)
	if err != nil {
		return err
	}
	return p.write(ops)
}

func (p *egressNFTables) replace(r *egress.Rules) ([]string, error) {
	have := egress.Contents{}
	for _, f := range p.state.Families {
		c, err := p.conn.Read(f, egress.TableName)
		if err != nil {
			return nil, err
		}
		have[f] = c
	}
	ops, why := p.state.Replace(r, have)
	return why, p.write(ops)
}

func (p *egressNFTables) write(ops []desired.NFTOp) error {
	err := p.conn.Apply(ops)
	if err != nil {
		p.state.Forget()
	}
	return err
}

// removeEgressTables takes away our nftables tables.
func removeEgressTables() (removed []string, err error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, nil // no nftables, no tables
	}
	defer conn.Close()
	var ops []desired.NFTOp
	for _, f := range egress.Families {
		if there, err := conn.Exists(f, egress.TableName); err == nil && there {
			removed = append(removed, fmt.Sprintf("nftables table %s %s", f, egress.TableName))
			ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: egress.TableName, Join: len(ops) > 0})
		}
	}
	if err := conn.Apply(ops); err != nil {
		return nil, fmt.Errorf("remove the tables of masquerading: %w", err)
	}
	return removed, nil
}

// egressIPTables is the same for iptables.
type egressIPTables struct {
	tools map[desired.NFTFamily]*ipt.Tool
	watch interface {
		Sum() (uint32, error)
		Close()
	}
	restore func(t *ipt.Tool, input string) error // the tool's; tests put harm between
	counted bool                                  // each table that we write raises what watch says by one
}

// newEgressIPTables takes the variant of iptables that the node's other programs use.
func newEgressIPTables() (egressPlane, error) {
	v, why, err := ipt.Choose(tools.Traces)
	if err != nil {
		return nil, tools.HintIPTables(v, err)
	}
	return newEgressIPTablesVariant(v, why)
}

func newEgressIPTablesVariant(v ipt.Variant, why string) (egressPlane, error) {
	p := &egressIPTables{restore: (*ipt.Tool).Restore, tools: map[desired.NFTFamily]*ipt.Tool{}}
	var ipv6s []bool
	for f, ipv6 := range map[desired.NFTFamily]bool{desired.NFTIPv4: false, desired.NFTIPv6: true} {
		if !ipt.Enabled(ipv6) {
			continue
		}
		tool, err := ipt.Find(ipv6, v)
		if err == nil {
			err = tool.Check()
		}
		if err != nil {
			return nil, tools.HintIPTables(v, fmt.Errorf("iptables, variant %s (%s), %s: %w", v, why, tools.Family(ipv6), err))
		}
		p.tools[f], ipv6s = tool, append(ipv6s, ipv6)
	}
	var err error
	if v == ipt.Legacy {
		var w *ipt.Watch
		if w, err = ipt.NewWatch(ipv6s...); err == nil {
			w.More, p.watch = []string{"mangle"}, w
		}
	} else {
		p.counted = true
		p.watch, err = newGenerationWatch()
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// generationWatch sees changes of rules that iptables keeps in nftables.
type generationWatch struct{ *nft.Conn }

func newGenerationWatch() (generationWatch, error) {
	conn, err := nft.Open()
	return generationWatch{conn}, err
}

func (w generationWatch) Sum() (uint32, error) { return w.Generation() }

func (p *egressIPTables) Name() string { return "iptables" }
func (p *egressIPTables) Close()       { p.watch.Close() }

func (p *egressIPTables) generation() (uint32, error) { return p.watch.Sum() }

// commits is 0 where writes are not counted: after one all is compared again, since it may hide another's.
func (p *egressIPTables) commits() (n uint32) {
	for _, t := range p.tools {
		if p.counted {
			n += t.Commits()
		}
	}
	return n
}

func (p *egressIPTables) apply(r *egress.Rules) error {
	_, err := p.replace(r)
	return err
}

func (p *egressIPTables) replace(r *egress.Rules) (changes []string, err error) {
	for _, f := range egress.Families {
		tool := p.tools[f]
		if tool == nil {
			continue
		}
		saved, err := tool.Save("mangle")
		if err != nil {
			return changes, err
		}
		input := egress.Input(f, r, saved)
		if input == "" {
			continue
		}
		if hasEgress(saved) {
			changes = append(changes, fmt.Sprintf("wrote iptables chains %s… of %s: they were not as wanted", egress.ChainPrefix, tools.Family(f == desired.NFTIPv6)))
		}
		if err := p.restore(tool, input); err != nil {
			return changes, fmt.Errorf("masquerading of %s: %w", tools.Family(f == desired.NFTIPv6), err)
		}
	}
	return changes, nil
}

func hasEgress(saved map[string]map[string][]string) bool {
	for _, chains := range saved {
		for name := range chains {
			if strings.HasPrefix(name, egress.ChainPrefix) {
				return true
			}
		}
	}
	return false
}

// removeEgressChains takes away our chains.
func removeEgressChains() (removed []string, err error) {
	return removeChains("masquerading", "chains "+egress.ChainPrefix+"…", func(saved xt.Saved) string {
		if !hasEgress(saved) {
			return ""
		}
		return xt.Remove(saved, func(_, chain string) bool { return strings.HasPrefix(chain, egress.ChainPrefix) })
	})
}

// removeChains restores what input makes of the tables of both variants of iptables, if anything, and says of which it took
// the chains away. Tables that this process may not read are none of ours: the agent writes there with more rights.
func removeChains(what, chains string, input func(saved xt.Saved) string) (removed []string, err error) {
	var errs []error
	for _, v := range ipt.Variants {
		for _, ipv6 := range []bool{false, true} {
			tool, err := ipt.Find(ipv6, v)
			if err != nil || !ipt.Enabled(ipv6) {
				continue // without the tool or the family nothing of it can be here
			}
			saved, err := tool.Tables()
			if errors.Is(err, os.ErrPermission) {
				continue
			}
			if err == nil {
				if text := input(saved); text != "" {
					if err = tool.Restore(text); err == nil {
						removed = append(removed, fmt.Sprintf("iptables %s of %s (%s)", chains, tools.Family(ipv6), v))
					}
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s of %s: %w", what, tools.Family(ipv6), err))
			}
		}
	}
	return removed, errors.Join(errs...)
}
