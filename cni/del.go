package main

import (
	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/cni/ipam"
	masq "github.com/braidnet/braid/cni/masquerade"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/skel"
)

// del removes the pod's interface and gives back its addresses. It needs
// neither the pod's namespace nor a result of ADD, and may be called again:
// what is gone is as it should be.
func del(args *skel.CmdArgs) error {
	conf, err := parseForDelete(args.StdinData)
	if err != nil {
		return err
	}
	node, err := link.OpenAt(-1)
	if err != nil {
		return err
	}
	defer node.Close()
	return unplug(conf, node, ipam.Owner{ContainerID: args.ContainerID, IfName: args.IfName})
}

// unplug removes all there is of an attachment. The reservation goes last, as
// it came first: as long as anything is left, it is there to say so, also when
// this is cut short (see gc).
func unplug(conf *config, node *link.Handle, owner ipam.Owner) error {
	// An address is free only when nothing leads to it and nothing answers to it.
	host := link.HostVethName(owner.ContainerID, owner.IfName)
	found, err := link.DeleteVeth(node, host)
	if err != nil {
		return err
	}
	if err := link.DeleteIfb(node, link.IfbName(owner.ContainerID, owner.IfName)); err != nil {
		return err
	}
	rules, err := hostPorts(conf, node).Remove(host, append(antispoof.Groups, masq.Tables)...)
	if err != nil {
		return err
	}
	freed, err := ipam.Open(conf.DataDir, conf.Name, conf.Log).Release(owner)
	if err != nil {
		return err
	}
	for _, a := range freed {
		if err := link.DeleteNeigh(node, conf.Bridge, a); err != nil {
			conf.Log.Warn("the node's entry of a removed pod stays until it expires", "err", err)
		}
	}
	conf.Log.Debug("removed", "attachment", owner, "host", host, "found", found, "rules", rules, "freed", freed)
	return nil
}
