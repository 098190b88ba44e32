package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// gc removes what is left of attachments that the runtime does not know (any
// more), and goes on after an error. ADD reserves an address before it does
// anything, and DEL gives it back after everything else. So what has no
// reservation has nothing; and reservations are of one network, while links
// and host ports of others look the same.
func gc(args *skel.CmdArgs) error {
	valid, err := validAttachments(args.StdinData)
	if err != nil {
		return err
	}
	conf, err := parseForDelete(args.StdinData)
	if err != nil {
		return err
	}
	node, err := link.OpenAt(-1)
	if err != nil {
		return err
	}
	defer node.Close()
	stale, err := ipam.Open(conf.DataDir, conf.Name, conf.Log).Stale(func(o ipam.Owner) bool { return valid[o] })
	if err != nil {
		return err
	}
	var errs []error
	for _, owner := range stale {
		conf.Log.Info("removing what is left of an attachment that the runtime does not know", "attachment", owner)
		if err := unplug(conf, node, owner); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", owner, err))
		}
	}
	return errors.Join(errs...)
}

// validAttachments reads whom to leave alone. A list that is missing is not
// an empty one: nothing may be removed then.
func validAttachments(data []byte) (map[ipam.Owner]bool, error) {
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &keys); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "configuration is not valid JSON: "+err.Error(), "")
	}
	const key = "cni.dev/valid-attachments"
	raw, ok := keys[key]
	if !ok {
		return nil, invalid("%s is missing: expected the attachments to keep, or an empty list", key)
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, invalid("%s: expected a list of attachments with containerID and ifname: %v", key, err)
	}
	valid := make(map[ipam.Owner]bool, 2*len(list))
	for i, a := range list {
		if a.ContainerID == "" || a.IfName == "" {
			return nil, invalid("%s[%d] is %+v: expected containerID and ifname", key, i, a)
		}
		valid[ipam.Owner{ContainerID: a.ContainerID, IfName: a.IfName}] = true
		valid[ipam.Owner{ContainerID: a.ContainerID}] = true // as an old host-local wrote it
	}
	return valid, nil
}
