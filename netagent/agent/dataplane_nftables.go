package agent

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/nftables"
)

// nftablesPlane joins the nftables renderer to the kernel.
type nftablesPlane struct {
	log      *slog.Logger
	conn     *nft.Conn
	families []desired.NFTFamily
	state    *nftables.State
}

// newNFTables opens the nftables of the network namespace it is called in. It fails, saying why,
// where the kernel cannot do what the renderer needs, and changes nothing.
func newNFTables(log *slog.Logger) (service.Dataplane, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	p := &nftablesPlane{log: log, conn: conn}
	for _, f := range nftables.Families {
		err := conn.Check(probe(f))
		switch {
		case err == nil:
			p.families = append(p.families, f)
		case f == desired.NFTIPv6 && !tools.HaveIPv6():
			log.Info("no IPv6 in this kernel, IPv6 services are left out", "error", err)
		default:
			conn.Close()
			return nil, fmt.Errorf("this kernel cannot run the nftables rules (Linux 5.13 or later with nf_tables, nft_numgen, nft_fib, nft_nat, nft_masq, nft_reject is needed): %w", err)
		}
	}
	p.state = nftables.NewState(p.families, tcpLiberal())
	return p, nil
}

// probe is a table with one of everything, to be checked only.
func probe(f desired.NFTFamily) (ops []desired.NFTOp) {
	table := nftables.Skeleton(f, false)
	table.Name = nftables.TableName + "-probe"
	ops = append(ops, desired.NFTOp{Verb: desired.NFTAddTable, Family: f, Table: table.Name, Def: &table})
	for _, c := range nftables.Samples(f) {
		ops = append(ops, desired.NFTOp{Verb: desired.NFTAddChain, Family: f, Table: table.Name, Chain: &c})
	}
	return ops
}

// Close ends the connection to the kernel; the tables stay.
func (p *nftablesPlane) Close() { p.conn.Close() }

// Name implements service.Dataplane.
func (p *nftablesPlane) Name() string { return "nftables" }

// Replace implements service.Dataplane. It lists our tables once and writes the difference; a table
// of another version, or one that somebody altered, is made anew in one transaction.
func (p *nftablesPlane) Replace(all []service.Frontend, net service.Net) error {
	have, err := p.read()
	if err != nil {
		return err
	}
	ops, rebuilt := p.state.Replace(all, net, have)
	for _, why := range rebuilt {
		p.log.Info("nftables table is made anew", "reason", why)
	}
	return p.write(ops)
}

// Apply implements service.Dataplane.
func (p *nftablesPlane) Apply(d service.Delta) error {
	ops, err := p.state.Apply(d)
	if err != nil {
		return err
	}
	return p.write(ops)
}

// Cleanup implements service.Dataplane.
func (p *nftablesPlane) Cleanup() (removed []string, err error) {
	p.state.Forget()
	var ops []desired.NFTOp
	for _, f := range p.families {
		there, err := p.conn.Exists(f, nftables.TableName)
		if err != nil {
			return nil, err
		}
		if there {
			removed = append(removed, fmt.Sprintf("nftables table %s %s", f, nftables.TableName))
			ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: nftables.TableName})
		}
	}
	if err := p.write(ops); err != nil {
		return nil, err // one transaction: nothing went
	}
	return removed, nil
}

func (p *nftablesPlane) read() (nftables.Contents, error) {
	have := nftables.Contents{}
	var errs error
	for _, f := range p.families {
		c, err := p.conn.Read(f, nftables.TableName)
		errs = errors.Join(errs, err)
		have[f] = c
	}
	return have, errs
}

func (p *nftablesPlane) write(ops []desired.NFTOp) error {
	err := p.conn.Apply(ops)
	if err != nil {
		p.state.Forget() // nobody knows now what the kernel holds; Replace reads it
	}
	return err
}
