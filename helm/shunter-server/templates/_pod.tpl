{{/* Parts of pods: of the server's own, of hooks, of the backup, of the test. */}}

{{/* Of every pod: how it is scheduled and what it may. Of dict "root" "account" "token": whether it has the account's token. */}}
{{- define "shunter-server.podCommon" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .root.Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .root.Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Of every container. */}}
{{- define "shunter-server.containerCommon" -}}
image: {{ include "shunter-server.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{/* Files that whoever reaches the database or other servers needs. */}}
{{- define "shunter-server.commonMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if or .Values.ca.secret .Values.ca.configMap }}
- name: ca
  mountPath: /etc/shunter/ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "shunter-server.commonVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.ca.secret }}
- name: ca
  secret:
    secretName: {{ .Values.ca.secret }}
    items:
      - {key: {{ .Values.ca.key | quote }}, path: {{ .Values.ca.key | quote }}}
{{- else if .Values.ca.configMap }}
- name: ca
  configMap:
    name: {{ .Values.ca.configMap }}
    items:
      - {key: {{ .Values.ca.key | quote }}, path: {{ .Values.ca.key | quote }}}
{{- end }}
{{- end -}}

{{/* The folder of database and logs, where that is a claim; else it is as old as the pod. */}}
{{- define "shunter-server.dataVolume" -}}
- name: data
{{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "shunter-server.claim" . }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end -}}

{{/* Of dict "root" "probe" "path": null if there is no such probe. */}}
{{- define "shunter-server.probe" -}}
{{- $probe := .probe -}}
{{- if not (or $probe.httpGet $probe.tcpSocket $probe.exec $probe.grpc) -}}
{{- $tls := eq .root.Values.tls.mode "secret" -}}
{{- $server := default (dict) .root.Values.settings.server -}}
{{- if and $tls $server.tls_client_ca (ne (toString $server.tls_client_required) "false") -}}
{{- /* The kubelet has no certificate to show. */ -}}
{{- $probe = merge (dict "tcpSocket" (dict "port" "api")) $probe -}}
{{- else -}}
{{- $probe = merge (dict "httpGet" (dict "path" .path "port" "api" "scheme" (ternary "HTTPS" "HTTP" $tls))) $probe -}}
{{- end -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{/* The pod of the server, the same in both kinds of workload. */}}
{{- define "shunter-server.pod" -}}
{{- $sqlite := eq .Values.database.type "sqlite" -}}
metadata:
  labels:
    {{- include "shunter-server.podLabels" (dict "root" . "component" "server" "labels" .Values.podLabels) | nindent 4 }}
  {{- with merge (dict) .Values.podAnnotations .Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "shunter-server.podCommon" (dict "root" . "account" (include "shunter-server.serviceAccount" .) "token" (ne (include "shunter-server.asksCluster" .) "")) | nindent 2 }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $servers := dict "matchLabels" (include "shunter-server.selector" (dict "root" $ "component" "server") | fromYaml) }}
    {{- range . }}
    - {{ set (deepCopy .) "labelSelector" (default $servers .labelSelector) | toJson }}
    {{- end }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- if or (and $sqlite .Values.database.migrate) .Values.extraInitContainers }}
  initContainers:
    {{- if and $sqlite .Values.database.migrate }}
    - name: migrate
      {{- include "shunter-server.containerCommon" . | nindent 6 }}
      args: [server, upgrade-db]
      env:
        {{- include "shunter-server.commonEnvironment" . | nindent 8 }}
      resources:
        {{- toYaml .Values.jobs.resources | nindent 8 }}
      volumeMounts:
        {{- include "shunter-server.commonMounts" . | nindent 8 }}
        - name: data
          mountPath: /var/lib/shunter
    {{- end }}
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: server
      {{- include "shunter-server.containerCommon" . | nindent 6 }}
      args:
        - server
        - start
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        {{- include "shunter-server.environment" . | nindent 8 }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: api
          containerPort: 4400
          protocol: TCP
      {{- with .Values.startupProbe }}
      startupProbe:
        {{- include "shunter-server.probe" (dict "root" $ "probe" . "path" "/healthz") | nindent 8 }}
      {{- end }}
      {{- with .Values.livenessProbe }}
      livenessProbe:
        {{- include "shunter-server.probe" (dict "root" $ "probe" . "path" "/healthz") | nindent 8 }}
      {{- end }}
      {{- with .Values.readinessProbe }}
      readinessProbe:
        {{- include "shunter-server.probe" (dict "root" $ "probe" . "path" "/readyz") | nindent 8 }}
      {{- end }}
      {{- if .Values.preStop }}
      lifecycle:
        preStop:
          {{- toYaml .Values.preStop | nindent 10 }}
      {{- else if not $sqlite }}
      lifecycle:
        preStop:
          exec:
            command: [sleep, "5"]
      {{- end }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        {{- include "shunter-server.commonMounts" . | nindent 8 }}
        - name: data
          mountPath: /var/lib/shunter
        {{- if eq .Values.tls.mode "secret" }}
        - name: tls
          mountPath: /etc/shunter/tls
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "shunter-server.commonVolumes" . | nindent 4 }}
    {{- include "shunter-server.dataVolume" . | nindent 4 }}
    {{- if .Values.backup.enabled }}
    # Mounted by no container: with it here the claim is bound at once, to a volume of this pod's node or zone.
    - name: backups
      persistentVolumeClaim:
        claimName: {{ include "shunter-server.backupClaim" . }}
    {{- end }}
    {{- if eq .Values.tls.mode "secret" }}
    - name: tls
      secret:
        secretName: {{ .Values.tls.secretName }}
        # The server refuses a key that everybody may read; the pod's fsGroup may.
        defaultMode: 0440
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
