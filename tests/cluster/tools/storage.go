package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	provision "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// newStorageCommand makes a folder of the node for each claim of a class, and removes it with the claim.
func newStorageCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "storage KUBECONFIG PROVISIONER FOLDER",
		Args:         cobra.ExactArgs(3),
		SilenceUsage: true,
		RunE: func(command *cobra.Command, words []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", words[0])
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			provision.NewProvisionController(
				command.Context(), client, words[1], folders{words[2]}, provision.LeaderElection(false),
			).Run(command.Context())
			return nil
		},
	}
}

// folders are volumes of the kind "local": the kubelet gives them to a pod's fsGroup, which it does not with hostPath.
type folders struct{ root string }

func (f folders) Provision(
	_ context.Context, asked provision.ProvisionOptions,
) (*core.PersistentVolume, provision.ProvisioningState, error) {
	if asked.SelectedNodeName == "" {
		return nil, provision.ProvisioningFinished, fmt.Errorf("no node: the class must bind at the first consumer")
	}
	path := filepath.Join(f.root, asked.PVName)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, provision.ProvisioningFinished, err
	}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: asked.PVName},
		Spec: core.PersistentVolumeSpec{
			AccessModes:                   asked.PVC.Spec.AccessModes,
			Capacity:                      core.ResourceList{core.ResourceStorage: asked.PVC.Spec.Resources.Requests[core.ResourceStorage]},
			PersistentVolumeReclaimPolicy: *asked.StorageClass.ReclaimPolicy,
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: path}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{MatchExpressions: []core.NodeSelectorRequirement{{
					Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{asked.SelectedNodeName},
				}}}},
			}},
		},
	}, provision.ProvisioningFinished, nil
}

func (f folders) Delete(_ context.Context, volume *core.PersistentVolume) error {
	return os.RemoveAll(filepath.Join(f.root, volume.Name))
}
